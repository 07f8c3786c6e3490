// The gateway's JSON. An error carries what is wrong and what to do next.

export class ApiError extends Error {
  constructor({ what, expected, found, next }) {
    super(what);
    this.parts = { expected, found, next };
  }
}

async function answerOf(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError({ what: "The gateway does not answer", next: "start marquee ui again" });
  }
  const value = await answer.json().catch(() => null);
  if (answer.ok && value) return value;
  throw new ApiError(value?.error ?? { what: `The gateway's answer ${answer.status} is not understood` });
}

/** get("page", { user, cursor }); empty values are left out. */
export function get(name, parameters = {}, signal) {
  const given = Object.entries(parameters).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  const query = new URLSearchParams(given);
  return answerOf(`/api/${name}${given.length ? `?${query}` : ""}`, { signal });
}

export function post(name, value) {
  const headers = { "Content-Type": "application/json" };
  return answerOf(`/api/${name}`, { method: "POST", headers, body: JSON.stringify(value) });
}
