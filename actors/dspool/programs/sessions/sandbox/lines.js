// In place of https://deno.land/std@0.186.0/io/mod.ts, of which DSPy's runner needs this one function: a sandbox runs
// nothing that was fetched from a web site.
export async function* readLines(reader) {
  const decoder = new TextDecoder();
  const chunk = new Uint8Array(65536);
  let rest = "";
  for (let size; (size = await reader.read(chunk)) !== null;) {
    const lines = (rest + decoder.decode(chunk.subarray(0, size), { stream: true })).split("\n");
    rest = lines.pop();
    yield* lines;
  }
  if (rest !== "") yield rest;
}
