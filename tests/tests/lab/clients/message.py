# Asks for a message as the API's own library does, by what comes with Python, and prints what it says.
import json, os, urllib.request

body = {"model": "claude-sonnet-4-5", "max_tokens": 16, "messages": [{"role": "user", "content": "ping"}]}
headers = {
    "x-api-key": os.environ["ANTHROPIC_API_KEY"],
    "anthropic-version": "2023-06-01",
    "content-type": "application/json",
}
request = urllib.request.Request("https://api.anthropic.com/v1/messages", json.dumps(body).encode(), headers)
with urllib.request.urlopen(request) as answer:
    print(json.load(answer)["content"][0]["text"])
