// Says hello by a websocket, and prints what comes back.
const socket = new WebSocket('wss://api.anthropic.com/websocket');
socket.onopen = () => socket.send('hello');
socket.onmessage = (message) => { console.log(`echo: ${message.data}`); socket.close(); };
socket.onerror = (error) => { console.log(`failed: ${error.message}`); process.exit(1); };
