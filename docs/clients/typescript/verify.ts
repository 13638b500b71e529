// Verifies one purchase with Attesto, with types generated from its API description:
//
//     npm install openapi-fetch@0.17.0 && npm install --save-dev openapi-typescript@7.13.0 typescript@5.9.3 @types/node@22.20.5
//     attesto openapi >openapi.json && npx openapi-typescript openapi.json --output attesto.d.ts
//     npx tsc --strict --target es2022 --module nodenext verify.ts
//     ATTESTO_URL=https://attesto.internal ATTESTO_API_KEY=attesto_live_… node verify.js apple 2000000123456789
//
// It prints what your backend should do, as one line of JSON. Copy `ask` and the two functions below it.
import createClient from "openapi-fetch";
import type { components, paths } from "./attesto.js";

type Schemas = components["schemas"];
type Answer = Schemas["apple.Answer"] | Schemas["google.Answer"];

/** What to do now: grant the purchase or not; or change nothing, and ask again or correct the setup. */
export type Decision =
  | { do: "grant"; because: string; until: string | null; user: string | null }
  | { do: "refuse"; because: string; user?: string | null }
  | { do: "ask again" | "mend"; because: string; afterSeconds?: number };

const client = createClient<paths>({
  baseUrl: process.env["ATTESTO_URL"] ?? "http://127.0.0.1:8080",
  headers: { Authorization: `Bearer ${process.env["ATTESTO_API_KEY"] ?? ""}` },
  // Attesto waits ten seconds for a store.
  fetch: (request) => fetch(request, { signal: AbortSignal.timeout(15_000) }),
});

async function ask(
  question: Promise<{ data?: Answer; error?: Schemas["ErrorBody"]; response: Response }>,
): Promise<Decision> {
  const { data, error, response } = await question;
  if (data !== undefined) return decide(data);
  // No verdict: do not change what the user has.
  const because = `${error?.error ?? response.status}: ${error?.message ?? "no answer of Attesto's"}`;
  if (![429, 500, 502, 503].includes(response.status)) return { do: "mend", because };
  return { do: "ask again", because, afterSeconds: Number(response.headers.get("retry-after") ?? 5) };
}

export function decide(answer: Answer): Decision {
  // The compiler narrows the type by `valid`.
  if (!answer.valid) return { do: "refuse", because: `${answer.error}: ${answer.message}` };
  const { state, stateError } = answer;
  const user = answer.appUserId ?? null;
  // Genuine, and what it is worth is not known: do not change what the user has.
  if (state == null) return { do: "ask again", because: stateError ?? "no state", afterSeconds: 60 };
  // Your backend stores the state too, by the same statement as those of events: the newest `asOf` wins.
  if (!isEntitled(state)) return { do: "refuse", because: state.status, user };
  return { do: "grant", because: state.status, until: state.entitledUntil ?? null, user };
}

/** The gate: may the customer use the product now? */
export function isEntitled(state: Schemas["PurchaseState"], now = Date.now()): boolean {
  return state.entitled && (state.entitledUntil == null || now < Date.parse(state.entitledUntil));
}

const [store, id = "", productId] = process.argv.slice(2);
const packageName = process.env["PACKAGE_NAME"] ?? "com.example.app";
const decision = store === "apple"
  ? await ask(client.POST("/v1/apple/verify", { body: { transactionId: id } }))
  : await ask(client.POST("/v1/google/verify", {
      body: productId === undefined
        ? { packageName, purchaseToken: id }
        : { packageName, purchaseToken: id, productId },
    }));
console.log(JSON.stringify(decision));
