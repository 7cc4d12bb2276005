import { type Bus, consumeEvents, type Registration } from '@holdfast/bus';
import { AppError, type StoredEvent } from '@holdfast/contracts';
import { type CustomTransportStrategy, Server } from '@nestjs/microservices';
import { isObservable, lastValueFrom } from 'rxjs';
import { ERROR_TABLE } from './error-table.ts';

/**
 * Nest transport over durable JetStream consumers: `@EventPattern<string>('evt.session.*.session.deleted')` on a method
 * makes one consumer `<service>-<reactor>` with the reactor's name in `extras.durable`. The handler's promise or
 * Observable is awaited, then the event is acknowledged; a throw is judged by the error table.
 */
export class JetStreamServer extends Server implements CustomTransportStrategy {
  readonly #bus: Bus;
  readonly #onFailure: (error: unknown, subject: string) => void;
  readonly #consumers: Registration[] = [];

  constructor(bus: Bus, onFailure: (error: unknown, subject: string) => void) {
    super();
    this.#bus = bus;
    this.#onFailure = onFailure;
  }

  listen(ready: () => void): void {
    for (const [pattern, handler] of this.messageHandlers) {
      const durable: unknown = handler.extras?.['durable'];
      if (typeof durable !== 'string') continue;
      this.#consumers.push(
        consumeEvents(this.#bus, {
          durable,
          filterSubject: pattern,
          verdict: (error) => ERROR_TABLE[error.kind].verdict,
          onError: this.#onFailure,
          handle: async (event: StoredEvent) => {
            const result: unknown = await handler(event);
            if (isObservable(result)) await lastValueFrom(result, { defaultValue: undefined });
          },
        }),
      );
    }
    ready();
  }

  async close(): Promise<void> {
    await Promise.all(this.#consumers.map((consumer) => consumer.stop()));
  }

  on(): never {
    throw new AppError('defect', 'internal.no-events', 'JetStreamServer has no events of its own.');
  }
  unwrap<T>(): T {
    return this.#bus as T;
  }
}
