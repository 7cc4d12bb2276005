import type { JsonObject, StoredEvent } from '@holdfast/contracts';

/** Turns the data of one event type from `fromVersion` into the next version's. Pure. */
export interface Upcaster {
  readonly type: string;
  readonly fromVersion: number;
  readonly upcast: (data: JsonObject) => JsonObject;
}

/** Applies upcasters on every read, step by step, so that the rest of the system knows newest versions only. */
export class Upcasters {
  readonly #steps = new Map<string, Upcaster>();

  constructor(upcasters: readonly Upcaster[] = []) {
    for (const upcaster of upcasters) this.#steps.set(`${upcaster.type}@${upcaster.fromVersion}`, upcaster);
  }

  apply(event: StoredEvent): StoredEvent {
    let step = this.#steps.get(`${event.type}@${event.schemaVersion}`);
    if (step === undefined) return event;
    let { schemaVersion, data } = event;
    for (; step !== undefined; step = this.#steps.get(`${event.type}@${schemaVersion}`)) {
      data = step.upcast(data);
      schemaVersion += 1;
    }
    return { ...event, schemaVersion, data };
  }
}
