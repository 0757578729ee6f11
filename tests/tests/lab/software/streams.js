// What is sent piece by piece arrives piece by piece: events, of which the second is sent when the first has been seen, and a
// websocket. argv: the host.
const host = process.argv[1];

async function events() {
  let text = "";
  for await (const piece of (await fetch(`${host}/events`)).body) {
    text += Buffer.from(piece);
    for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) {
      console.log(text.slice(0, end).replace("data:", "event"));
      await fetch(`${host}/seen`);
    }
  }
}

function websocket() {
  const words = ["hello", "again"];
  const socket = new WebSocket(`${host.replace("https", "wss")}/echo`);
  socket.onopen = () => socket.send(words.shift());
  socket.onmessage = ({ data }) => {
    console.log(`said ${data}`);
    words.length ? socket.send(words.shift()) : socket.close();
  };
  socket.onclose = () => console.log("closed");
}

events().then(websocket);
