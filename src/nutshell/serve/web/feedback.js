// Thumbs and better answers, for servers that keep them (serve --feedback). What was said is also kept with the message.

import { explain, post } from "./connection.js";
import { notice } from "./dom.js";
import * as store from "./store.js";
import { editBox } from "./view.js";

async function say(chat, message, view, changes) {
  const before = { rating: message.rating, better: message.better };
  Object.assign(message, changes);
  view.showRating();
  store.saveMessage(chat, message);
  try {
    await post("feedback", {
      conversation: chat.id,
      messages: store.apiMessages(chat, message.id),
      rating: message.rating || null,
      better: message.better || null,
      model: message.model || "",
    });
  } catch (error) {
    // A page that is left fails too, and ends while it waits here: the server may have kept it.
    await new Promise((resolve) => { setTimeout(resolve, 200); });
    Object.assign(message, before);
    view.showRating();
    store.saveMessage(chat, message);
    notice(`The server did not keep this. ${explain(error)}`);
  }
}

// The same thumb again takes it back.
export function rate(chat, message, view, rating) {
  say(chat, message, view, { rating: message.rating === rating ? "" : rating });
}

export function betterAnswer(chat, message, view) {
  if (view.below.querySelector(".editing")) return;
  const close = () => {
    box.remove();
    view.buttons.better.focus();
  };
  const box = editBox(message.better || store.plainText(message), {
    label: "A better answer", done: "Save", cancel: close, save: (better) => {
      close();
      say(chat, message, view, { better, rating: message.rating || "down" });
    },
  });
  view.below.prepend(box);
  box.begin();
}
