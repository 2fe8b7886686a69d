// Requests to the server that sent this page. Errors are `ApiError`s with the server's message.

export class ApiError extends Error {
  constructor(message, status, field) {
    super(message);
    this.status = status;
    this.field = field;
  }
}

const TOKEN = "nanogpt_lite token";
const BROKEN = "the connection broke off; is the server still running?";
let asking = null; // the promise of a token that the user is asked for

export const hasToken = () => sessionStorage.getItem(TOKEN) !== null;

export async function get(path) {
  return content(await request(path, {}));
}

export async function post(path, body, signal) {
  return content(await request(path, { method: "POST", body: JSON.stringify(body), signal }));
}

async function content(response) {
  try {
    return await response.json();
  } catch (error) {
    throw error.name === "AbortError" ? error : new ApiError(BROKEN, 0);
  }
}

// Text that follows a prompt, as it comes: `onText` gets each part. Returns why it ended.
export async function streamText(body, signal, onText) {
  const options = { method: "POST", body: JSON.stringify({ ...body, stream: true }), signal };
  const response = await request("/v1/completions", options);
  let reason = null;
  for await (const event of events(response)) {
    if (event.error) throw new ApiError(event.error.message, response.status);
    const [choice] = event.choices;
    if (choice) {
      onText(choice.text);
      reason = choice.finish_reason ?? reason;
    }
  }
  if (reason === null) throw new ApiError(BROKEN, 0);
  return reason;
}

async function request(path, options) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = { "Content-Type": "application/json" };
  if (token) headers.Authorization = `Bearer ${token}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("the server does not answer; is it still running?", 0);
  }
  if (response.status === 401 && response.headers.get("WWW-Authenticate") === "Bearer") {
    if (sessionStorage.getItem(TOKEN) === token) { // else another request has asked for it meanwhile
      sessionStorage.removeItem(TOKEN);
      await askForToken(token !== null);
    }
    return request(path, options);
  }
  if (!response.ok) {
    const { error } = await response.json().catch(() => ({ error: { message: `status ${response.status}` } }));
    throw new ApiError(error.message, response.status, error.param);
  }
  return response;
}

function askForToken(wasWrong) {
  const dialog = document.getElementById("token"), input = dialog.querySelector("input");
  asking ??= new Promise((resolve) => {
    dialog.querySelector("[role=alert]").hidden = !wasWrong;
    dialog.oncancel = (event) => event.preventDefault();
    dialog.onclose = () => {
      sessionStorage.setItem(TOKEN, input.value);
      input.value = "";
      asking = null;
      resolve();
    };
    dialog.showModal();
  });
  return asking;
}

// The data of server-sent events until [DONE].
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : new ApiError(BROKEN, 0);
    });
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const [, data] = part.match(/^data: (.*)$/) ?? []; // none of an event that broke off
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
}
