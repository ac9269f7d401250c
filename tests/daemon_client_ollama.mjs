// The npm package of Ollama's client against a daemon: node daemon_client_ollama.mjs OLLAMA_PACKAGE URL
// Prints what it got as one JSON object.
const { Ollama } = await import(process.argv[2]);
const client = new Ollama({ host: process.argv[3] });
const said = (content) => ({ model: "tiny", messages: [{ role: "user", content }] });
const found = { models: (await client.list()).models.map((model) => model.name) };
found.whole = (await client.chat(said("say Grüße|, 世界|!"))).message.content;
found.streamed = "";
for await (const part of await client.chat({ ...said("slow 0.1 Grüße|, 世界|!"), stream: true })) {
  found.streamed += part.message.content;
  if (part.done) found.counted = part.eval_count;
}
found.generated = (await client.generate({ model: "tiny", prompt: "say x|y", raw: true })).response;
found.embedded = (await client.embed({ model: "tiny", input: ["a", "b"] })).embeddings.length;
found.shown = (await client.show({ model: "tiny" })).model_info["llama.context_length"];
found.running = (await client.ps()).models.length;
const tools = [{ type: "function", function: { name: "light", parameters: { type: "object", properties: {} } } }];
const call = '<think>Dark.</think>On.|<tool_|call>{"name": "light", "arguments": {"on": true}}</tool_call>';
found.called = (await client.chat({ ...said(`say ${call}`), tools })).message;
const failing = async (asked) => {
  try {
    const answer = await client.chat(asked);
    if (asked.stream) for await (const part of answer) void part;
    return "nothing was wrong";
  } catch (error) {
    return [error.message, error.status_code ?? null];
  }
};
found.full = await failing(said("full"));
found.unknown = await failing({ ...said("x"), model: "llama3.2" });
found.broken = await failing({ ...said("break half"), stream: true });
console.log(JSON.stringify(found));
