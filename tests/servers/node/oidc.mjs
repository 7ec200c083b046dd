// oidc-provider (panva) with the people that the first argument names: sub -> claims. Its own pages
// for development ask for a login, which is the sub; any password will do. Prints its address.
import { createServer } from "node:http";
import { Provider } from "oidc-provider";

const { people, clientId, clientSecret, redirectUri } = JSON.parse(process.argv[2]);
// It names itself by its address, which is only known once it listens.
const server = createServer();
await new Promise((listens) => server.listen(0, "127.0.0.1", listens));
const issuer = `http://127.0.0.1:${server.address().port}`;
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
server.on("request", provider.callback());
console.log(issuer);
process.stdin.resume().on("end", () => process.exit());
