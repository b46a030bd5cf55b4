// Copyright 2026 The jvlm authors. Licensed under the Apache License, Version 2.0.
// Runs the model outside of the page's thread, so that the page does not freeze.
import { Answerer } from "./answerer.js";

const send = (kind, content = {}) => postMessage({ kind, ...content });
const handlers = {
  async image(answerer, { file }) {
    const { grid, pixels } = await answerer.setImage(file);
    send("image", { file, grid, pixels });
  },
  async question(answerer, { question, id }) {
    for await (const piece of answerer.answer(question)) send("piece", { id, ...piece });
    send("answered", { id });
  },
};
// One message after the other, so that a question is about the image that was chosen before it.
let work = Answerer.load((loaded, total) => send("progress", { loaded, total }));
work.then(({ settings }) => send("ready", { settings }), ({ message }) => send("failed", { message }));
onmessage = ({ data }) => {
  work = work.then(async (answerer) => {
    await handlers[data.kind](answerer, data).catch(({ message }) => send("error", { id: data.id, message }));
    return answerer;
  });
  work.catch(() => {}); // loading failed, which the page says
};
