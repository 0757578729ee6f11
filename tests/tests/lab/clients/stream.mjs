// Prints events as they come, and tells the host of the first: it sends no other before that.
const headers = { 'x-api-key': process.env.ANTHROPIC_API_KEY };
const ask = (path) => fetch(`https://api.anthropic.com${path}`, { headers });
const text = new TextDecoder();
let told = false;
for await (const piece of (await ask('/stream')).body) {
  process.stdout.write(text.decode(piece).replace('\n\n', '\n'));
  if (!told) await (await ask('/read')).text();
  told = true;
}
