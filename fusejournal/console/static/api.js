// Asks the console's API. Who is logged in is here, too.

export const session = { name: "", role: "", csrf: "" };
const RANKS = { viewer: 1, operator: 2, admin: 3 };
export const may = (role) => (RANKS[session.role] ?? 0) >= RANKS[role];

// The names of users, as the agents have told them.
export const userNames = {};

export class ApiError extends Error {
  constructor(status, words) {
    super(words);
    this.status = status;
  }
}

// A byte that is no UTF-8 is a lone surrogate, which encodeURIComponent refuses.
export function encode(text) {
  return String(text).replace(/[\ud800-\udbff][\udc00-\udfff]|[\s\S]/g, (char) => {
    const code = char.charCodeAt(0);
    if (char.length === 1 && code >= 0xdc80 && code <= 0xdcff) return `%${(code & 0xff).toString(16)}`;
    return char.length === 1 && code >= 0xd800 && code <= 0xdfff ? "%EF%BF%BD" : encodeURIComponent(char);
  });
}

export function query(params) {
  const parts = [];
  for (const [key, value] of Object.entries(params ?? {})) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== undefined && one !== null && one !== "") parts.push(`${encode(key)}=${encode(one)}`);
    }
  }
  return parts.length ? `?${parts.join("&")}` : "";
}

export const volumePath = (agent, volume) => `/api/agents/${encode(agent)}/volumes/${encode(volume)}`;

async function answer(promise) {
  let response;
  let value;
  try {
    response = await promise;
    value = await response.json();
  } catch (error) {
    // A view that was left asks for nothing more.
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The console does not answer.");
  }
  if (response.ok) {
    Object.assign(userNames, value.users);
    return value;
  }
  if (response.status === 401) window.dispatchEvent(new Event("session-over"));
  throw new ApiError(response.status, value.error ?? `The console answered ${response.status}.`);
}

export function get(path, params, signal) {
  return answer(fetch(path + query(params), { signal, headers: { accept: "application/json" } }));
}

// Asks as the page does by itself, again and again: a session that only this uses ends.
export function poll(path, params, signal) {
  return answer(fetch(path + query(params), { signal, headers: { accept: "application/json", "x-poll": "1" } }));
}

export function post(path, body) {
  return answer(fetch(path, {
    method: "POST",
    headers: { "content-type": "application/json", "x-csrf-token": session.csrf },
    body: JSON.stringify(body ?? {}),
  }));
}

export async function restoreSession() {
  const response = await fetch("/api/session");
  if (!response.ok) return false;
  Object.assign(session, await response.json());
  return session.name !== "";
}
