import type { Bus } from '@holdfast/bus';
import { ALL_SERVICE_BEATS, type ServiceBeat } from '@holdfast/contracts';

/** A replica that was not heard for so long is taken for gone; who wants to know who lives listens for so long first. */
const SILENCE_MS = 5_000;

/**
 * Which event versions every live replica reads (L7), by their beats. A process that was not on the bus for the last five
 * seconds without a gap does not know, and then it is version 1. Promises no more than that: a replica that lives and is
 * cut off from the bus may meet a version that it cannot read, and parks the session.
 */
export class ReadableVersions {
  readonly #clock: () => number;
  readonly #heard = new Map<string, { readonly reads: Readonly<Record<string, number>>; readonly atMs: number }>();
  #lastMs = Number.NEGATIVE_INFINITY;
  #sinceMs = 0;

  /** `clock` in milliseconds; it never goes back. */
  constructor(clock: () => number = () => performance.now()) {
    this.#clock = clock;
  }

  /** Listens to the beats of all services, this process' own among them. */
  listen(bus: Bus): void {
    bus.subscribeLive<ServiceBeat>(ALL_SERVICE_BEATS, (beat) => this.hear(beat));
  }

  hear({ instance, startedAt, reads = {} }: Pick<ServiceBeat, 'instance' | 'startedAt' | 'reads'>): void {
    const nowMs = this.#clock();
    if (nowMs - this.#lastMs > SILENCE_MS) this.#sinceMs = nowMs;
    this.#lastMs = nowMs;
    // A new process of the same name may run beside the one that it replaces.
    this.#heard.set(`${instance} ${startedAt}`, { reads, atMs: nowMs });
  }

  /** The newest version of a type that all read. */
  of(type: string): number {
    const nowMs = this.#clock();
    if (nowMs - this.#lastMs > SILENCE_MS || nowMs - this.#sinceMs < SILENCE_MS) return 1;
    let lowest = Number.POSITIVE_INFINITY;
    for (const [replica, { reads, atMs }] of this.#heard) {
      if (nowMs - atMs > SILENCE_MS) this.#heard.delete(replica);
      else lowest = Math.min(lowest, reads[type] ?? 1);
    }
    return lowest;
  }
}
