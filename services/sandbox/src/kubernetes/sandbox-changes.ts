import { EventEmitter } from 'node:events';
import type { Bus, Registration } from '@holdfast/bus';
import { committedSubject, streamOf } from '@holdfast/contracts';

/** Tells whoever waits for a sandbox, at any replica, that its record changed. A hint: who misses it looks again by itself. */
export class SandboxChanges {
  readonly #bus: Bus;
  readonly #signals = new EventEmitter().setMaxListeners(0);
  readonly #registration: Registration;

  constructor(bus: Bus) {
    this.#bus = bus;
    this.#registration = bus.subscribeLive('live.sandbox.*.committed', (_body, subject) => {
      const [, , stream = ''] = subject.split('.');
      this.#signals.emit(stream);
    });
  }

  /** Resolves with the next change that is heard of, or when the time is over. */
  next(id: string, timeoutMs: number): Promise<void> {
    return new Promise((resolve) => {
      const name = streamOf('sandbox', id);
      const done = (): void => {
        clearTimeout(timer);
        this.#signals.off(name, done);
        resolve();
      };
      const timer = setTimeout(done, Math.max(0, timeoutMs));
      this.#signals.on(name, done);
    });
  }

  /** To those who wait here alone: nothing is recorded yet. */
  tellHere(id: string): void {
    this.#signals.emit(streamOf('sandbox', id));
  }

  tell(id: string): void {
    this.tellHere(id);
    this.#bus.publishLive(committedSubject(streamOf('sandbox', id)), {});
  }

  close(): void {
    void this.#registration.stop();
  }
}
