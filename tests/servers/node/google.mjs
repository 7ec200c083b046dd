// Runs emulate's Google on a free port, says where, and ends with its standard input.
import { createEmulator } from "emulate";

const emulator = await createEmulator({
  service: "google",
  port: 0,
  seed: JSON.parse(process.argv[2]),
});
console.log(emulator.url);
process.stdin.on("close", () => process.exit(0)).resume();
