// oidc-provider (panva) with the people that the first argument names: sub -> claims. Its own pages
// for development ask for a login, which is the sub; any password will do. Prints its address.
import { Provider } from "oidc-provider";

const { people, clientId, clientSecret, redirectUri, port } = JSON.parse(process.argv[2]);
const issuer = `http://127.0.0.1:${port}`;
const provider = new Provider(issuer, {
  clients: [{
    client_id: clientId, client_secret: clientSecret, redirect_uris: [redirectUri],
    grant_types: ["authorization_code"], response_types: ["code"],
  }],
  claims: { openid: ["sub", "groups"], email: ["email", "email_verified"], profile: ["name"] },
  conformIdTokenClaims: false,
  pkce: { required: () => true },
  features: { devInteractions: { enabled: true } },
  findAccount: (_, sub) => people[sub] && {
    accountId: sub, claims: async () => ({ sub, ...people[sub] }),
  },
});
provider.listen(port, "127.0.0.1", () => console.log(issuer));
process.stdin.resume().on("end", () => process.exit());
