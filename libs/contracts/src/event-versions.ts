import { catalogueEvents } from './catalogue.events.ts';
import { AppError } from './errors.ts';
import type { EventDeclaration, StoredEvent } from './event-declaration.ts';
import type { JsonObject } from './json.ts';
import { sandboxEvents } from './sandbox/sandbox.events.ts';
import { sessionEvents } from './session/session.events.ts';

/** Turns the data of one event type from `fromVersion` into the next version's. Pure. */
export interface Upcaster {
  readonly type: string;
  readonly fromVersion: number;
  readonly upcast: (data: JsonObject) => JsonObject;
}

/** Every shipped step from an old version to the next; steps are added and never changed. */
const UPCASTERS: readonly Upcaster[] = [];

type Versioned = Pick<EventDeclaration, 'type' | 'schemaVersion'>;

/** What this release can read: old versions by its upcasters, nothing newer than its declarations. */
export class EventVersions {
  readonly #steps: ReadonlyMap<string, Upcaster>;
  readonly #newest: ReadonlyMap<string, number>;

  constructor(declarations: readonly Versioned[], upcasters: readonly Upcaster[]) {
    this.#steps = new Map(upcasters.map((step) => [`${step.type}@${step.fromVersion}`, step]));
    this.#newest = new Map(declarations.map(({ type, schemaVersion }) => [type, schemaVersion]));
  }

  /** The event as its newest known version; an event that needs no step, also an unknown one, as it is. */
  upcast<E extends Pick<StoredEvent, 'type' | 'schemaVersion' | 'data'>>(event: E): E {
    let step = this.#steps.get(`${event.type}@${event.schemaVersion}`);
    if (step === undefined) return event;
    let { schemaVersion, data } = event;
    for (; step !== undefined; step = this.#steps.get(`${event.type}@${schemaVersion}`)) {
      data = step.upcast(data);
      schemaVersion += 1;
    }
    return { ...event, schemaVersion, data };
  }

  /**
   * Called by every fold before it believes an event (L7): an older release parks what a newer one wrote, it does not guess.
   *
   * @throws AppError `event.newer-version`, kind `unavailable`: a newer replica answers.
   */
  requireReadable(event: Pick<StoredEvent<string, unknown>, 'type' | 'schemaVersion'>): void {
    if (this.#newest.get(event.type) === event.schemaVersion) return;
    throw new AppError(
      'unavailable',
      'event.newer-version',
      `This release cannot read ${event.type} version ${event.schemaVersion}; a newer one must.`,
    );
  }
}

export const eventVersions = new EventVersions([...sessionEvents, ...sandboxEvents, ...catalogueEvents], UPCASTERS);
