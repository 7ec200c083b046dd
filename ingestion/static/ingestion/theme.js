// The theme that the admin's switch has chosen; else the system's.
const chosen = localStorage.getItem("_x_adminTheme") || "";
const dark = chosen.includes("dark") || (!chosen.includes("light") && matchMedia("(prefers-color-scheme: dark)").matches);
for (const name of ["dark", "dark-mode"]) { // the second is swagger-ui's
    document.documentElement.classList.toggle(name, dark);
}
