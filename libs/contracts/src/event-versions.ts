import { catalogueEvents } from './catalogue.events.ts';
import { AppError } from './errors.ts';
import type { EventDeclaration, StoredEvent } from './event-declaration.ts';
import type { JsonObject } from './json.ts';
import { sandboxEvents } from './sandbox/sandbox.events.ts';
import { sessionEvents } from './session/session.events.ts';

/** One step between two versions of an event type, both ways. Pure. */
export interface VersionStep {
  readonly type: string;
  readonly fromVersion: number;
  /** Data of `fromVersion` as the next version has it. */
  readonly upcast: (data: JsonObject) => JsonObject;
  /** Back: what is stored while a replica lives that reads no more than `fromVersion`. It may lose what is new. */
  readonly downcast: (data: JsonObject) => JsonObject;
}

/** Every shipped step from an old version to the next; steps are added and never changed. */
const STEPS: readonly VersionStep[] = [];

type Versioned = Pick<EventDeclaration, 'type' | 'schemaVersion'>;

/** What this release can read: old versions by its steps, nothing newer than its declarations. */
export class EventVersions {
  readonly #steps: ReadonlyMap<string, VersionStep>;
  readonly #newest: ReadonlyMap<string, number>;
  /** What a replica of this release says that it reads, in its beats: the types whose newest version is above 1. */
  readonly reads: Readonly<Record<string, number>>;

  constructor(declarations: readonly Versioned[], steps: readonly VersionStep[]) {
    this.#steps = new Map(steps.map((step) => [`${step.type}@${step.fromVersion}`, step]));
    this.#newest = new Map(declarations.map(({ type, schemaVersion }) => [type, schemaVersion]));
    this.reads = Object.fromEntries([...this.#newest].filter(([, version]) => version > 1));
  }

  /** The version that this release makes of a type; 1 for one that it does not know. */
  newest(type: string): number {
    return this.#newest.get(type) ?? 1;
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

  /** The event as an older version; as the oldest that there are steps to when `version` lies before that. */
  downcast<E extends Pick<StoredEvent, 'type' | 'schemaVersion' | 'data'>>(event: E, version: number): E {
    let { schemaVersion, data } = event;
    while (schemaVersion > version) {
      const step = this.#steps.get(`${event.type}@${schemaVersion - 1}`);
      if (step === undefined) break;
      data = step.downcast(data);
      schemaVersion -= 1;
    }
    return schemaVersion === event.schemaVersion ? event : { ...event, schemaVersion, data };
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

export const eventVersions = new EventVersions([...sessionEvents, ...sandboxEvents, ...catalogueEvents], STEPS);
