// What this browser keeps: two tables of IndexedDB, "chats" and "messages", and word of each change to the other tabs.
// Every write is a transaction of its own that is committed at once, so that it is kept even where the page goes away.

const unsaved = new Map(); // "table key" -> [table, key, value] that the browser refused; tried again when there is room
const channel = new BroadcastChannel("nutshell");
let database = null; // null: this browser keeps nothing
let onRefused = () => {};

export const anyUnsaved = () => unsaved.size > 0;

function connect() {
  return new Promise((resolve) => {
    try {
      const request = indexedDB.open("nutshell", 1);
      request.onupgradeneeded = () => ["chats", "messages"].forEach((table) => request.result.createObjectStore(table));
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => resolve(null);
      request.onblocked = () => resolve(null);
    } catch {
      resolve(null); // no leave to store
    }
  });
}

function entries(table) {
  return new Promise((resolve, reject) => {
    const found = new Map();
    const request = database.transaction(table).objectStore(table).openCursor();
    request.onerror = () => reject(request.error);
    request.onsuccess = () => {
      const cursor = request.result;
      if (!cursor) return resolve(found);
      found.set(cursor.key, cursor.value);
      return cursor.continue();
    };
  });
}

// Everything that is kept, as { chats, messages }: maps of key -> value. `refused` is called when something is not kept,
// `heard(table, key, value)` when another tab wrote; what it writes while we read is heard afterwards.
export async function open({ refused, heard }) {
  onRefused = refused;
  const early = [];
  channel.onmessage = ({ data }) => early.push(data);
  database = await connect();
  let kept = { chats: new Map(), messages: new Map() };
  if (database) {
    database.onclose = () => { database = null; }; // the browser's data was cleared
    try {
      kept = { chats: await entries("chats"), messages: await entries("messages") };
    } catch {
      database = null; // damaged, or another program's of this name
    }
  }
  setTimeout(() => {
    channel.onmessage = ({ data }) => heard(...data);
    early.forEach((data) => heard(...data));
  });
  return kept;
}

// Keep a value; undefined erases it. What was stored under the key stays where the browser refuses.
export function put(table, key, value) {
  channel.postMessage([table, key, value]);
  return write(table, key, value);
}

function write(table, key, value) {
  const name = `${table} ${key}`;
  return new Promise((resolve) => {
    const refuse = () => {
      const first = !unsaved.size;
      if (value !== undefined) unsaved.set(name, [table, key, value]);
      if (first && unsaved.size) onRefused();
      resolve(false);
    };
    if (value === undefined) unsaved.delete(name);
    if (!database) return refuse();
    try {
      const transaction = database.transaction(table, "readwrite");
      const rows = transaction.objectStore(table);
      if (value === undefined) rows.delete(key);
      else rows.put(value, key);
      transaction.onabort = refuse;
      transaction.oncomplete = () => {
        unsaved.delete(name);
        if (value === undefined) for (const one of [...unsaved.values()]) write(...one); // there may be room now
        resolve(true);
      };
      return transaction.commit();
    } catch {
      return refuse();
    }
  });
}

// Not to be kept any more, by order of another tab.
export function forget(start) {
  for (const name of [...unsaved.keys()]) if (name.startsWith(start)) unsaved.delete(name);
}
