// The annotations: undo and redo, and saving. Every change is sent at once; the server confirms it when it is on disk.
export const uuid = () => {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 15) | 64;
  bytes[8] = (bytes[8] & 63) | 128;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
};

export const labelOf = (feature) => {
  const found = feature.properties.classification;
  return (found && found.name) || feature.properties.label || null;
};
export const isRejected = (feature) => Boolean(feature.properties.coarse2fine && feature.properties.coarse2fine.rejected);

const MOST_UNDO = 500;

export class State extends EventTarget {
  constructor(info) {
    super();
    this.info = info;
    this.items = new Map();
    this.labels = new Map();
    this.revision = 0;
    this.undone = [];
    this.done = [];
    this.pending = new Map(); // id -> feature, or null if deleted: not confirmed yet
    this.sending = false;
    this.problem = "";
  }

  labelOf(feature) {
    return labelOf(feature) || this.labels.get(feature.id) || null;
  }

  async load() {
    const answer = await fetch("annotations.json");
    if (!answer.ok) throw new Error((await answer.json()).error);
    this.take(await answer.json());
  }

  // The server's annotations, with those changes on top that it does not have yet.
  take(found) {
    this.revision = found.revision;
    this.items = new Map(found.items.map((item) => [item.id, item]));
    found.items.forEach((item, i) => this.labels.set(item.id, found.labels[i]));
    for (const [id, feature] of this.pending) {
      if (feature) this.items.set(id, feature);
      else this.items.delete(id);
    }
    this.tell("change");
  }

  // One step of undo: features to put (new, or replacing that of the same id) and ids to delete.
  change(put, remove = []) {
    const step = [...put.map((feature) => [feature.id, feature]), ...remove.map((id) => [id, null])];
    this.done.push(step.map(([id, after]) => [id, this.items.get(id) || null, after]));
    if (this.done.length > MOST_UNDO) this.done.shift();
    this.undone = [];
    this.apply(step);
  }

  undo() {
    this.step(this.done, this.undone, ([id, before]) => [id, before]);
  }

  redo() {
    this.step(this.undone, this.done, ([id, , after]) => [id, after]);
  }

  step(from, to, pick) {
    const step = from.pop();
    if (!step) return;
    to.push(step);
    this.apply(step.map(pick));
  }

  apply(step) {
    for (const [id, feature] of step) {
      if (feature) this.items.set(id, feature);
      else this.items.delete(id);
      this.pending.set(id, feature);
    }
    this.tell("change");
    this.send();
  }

  get unsaved() {
    return this.pending.size > 0;
  }

  async post(path, body) {
    const headers = { "Content-Type": "application/json", [this.info.tokenHeader]: this.info.token };
    return fetch(path, { method: "POST", headers, body: JSON.stringify(body) });
  }

  async send() {
    if (this.sending) return;
    this.sending = true;
    let wait = 500;
    while (this.pending.size) {
      const sent = new Map(this.pending);
      const put = [...sent.values()].filter(Boolean);
      const remove = [...sent.keys()].filter((id) => !sent.get(id));
      try {
        const answer = await this.post("annotations.json", { revision: this.revision, put, delete: remove });
        const found = await answer.json();
        if (answer.status === 409) {
          this.take(found); // another tab or program has saved: its changes first, then ours again
          continue;
        }
        if (!answer.ok) throw new Error(found.error);
        this.revision = found.revision;
        for (const [id, feature] of sent) if (this.pending.get(id) === feature) this.pending.delete(id);
        this.problem = "";
      } catch (error) {
        this.problem = error instanceof TypeError ? "the server does not answer" : error.message;
      }
      this.tell("saved");
      if (this.problem) {
        await new Promise((resolve) => setTimeout(resolve, wait));
        wait = Math.min(wait * 2, 8000);
      }
    }
    this.sending = false;
    this.tell("saved");
  }

  // Another tab's changes, if nothing of ours is on its way; whether there were any.
  async follow(revision) {
    if (revision === this.revision || this.pending.size || this.sending) return false;
    await this.load();
    return true;
  }

  fail(problem) {
    this.problem = problem;
    this.tell("saved");
  }

  tell(name) {
    this.dispatchEvent(new Event(name));
  }
}
