// The npm package of OpenAI's client against a daemon: node daemon_client.mjs OPENAI_PACKAGE BASE_URL
// Prints what it got as one JSON object.
const { default: OpenAI } = await import(process.argv[2]);
const client = new OpenAI({ baseURL: process.argv[3], apiKey: "any", maxRetries: 0 });
const messages = [{ role: "user", content: "say Grüße|, 世界|!" }];
const found = { models: [] };
for await (const model of client.models.list()) found.models.push(model.id);
found.whole = (await client.chat.completions.create({ model: "tiny", messages })).choices[0].message.content;
found.streamed = "";
const stream = await client.chat.completions.create({
  model: "tiny", messages: [{ role: "user", content: "slow 0.1 Grüße|, 世界|!" }], stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  found.streamed += chunk.choices[0]?.delta?.content ?? "";
  if (chunk.usage) found.usage = chunk.usage;
}
const tools = [{ type: "function", function: { name: "light", parameters: { type: "object", properties: {} } } }];
const said = '<think>Dark.</think>On.|<tool_|call>{"name": "light", "arguments": {"on": true}}</tool_call>';
const runner = client.chat.completions.stream({ model: "tiny", messages: [{ role: "user", content: `say ${said}` }], tools });
found.thought = "";
for await (const chunk of runner) found.thought += chunk.choices[0]?.delta?.reasoning_content ?? "";
found.called = (await runner.finalChatCompletion()).choices[0];
found.text = (await client.completions.create({ model: "tiny", prompt: "say x|y" })).choices[0].text;
found.embedded = (await client.embeddings.create({ model: "tiny", input: ["a", "b"] })).data.map((each) => each.embedding.length);
found.responded = (await client.responses.create({ model: "tiny", input: "say x|y" })).output_text;
found.events = "";
for await (const event of await client.responses.create({ model: "tiny", input: "say x|y", stream: true })) {
  if (event.type === "response.output_text.delta") found.events += event.delta;
}
const failing = async (say, options = {}) => {
  try {
    const answer = await client.chat.completions.create({ model: "tiny", messages: [{ role: "user", content: say }], ...options });
    for await (const chunk of answer) void chunk;
    return "nothing was wrong";
  } catch (error) {
    return { name: error.constructor.name, status: error.status ?? null, code: error.code ?? null };
  }
};
found.long = await failing("long");
found.full = await failing("full");
found.broken = await failing("break half", { stream: true });
console.log(JSON.stringify(found));
