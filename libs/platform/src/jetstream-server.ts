import { type Bus, consumeEvents, type Registration } from '@holdfast/bus';
import { AppError, type StoredEvent } from '@holdfast/contracts';
import { Catch, type RpcExceptionFilter } from '@nestjs/common';
import { type CustomTransportStrategy, Server } from '@nestjs/microservices';
import { isObservable, lastValueFrom, type Observable, throwError } from 'rxjs';
import { ERROR_TABLE } from './error-table.ts';

/**
 * Nest transport over durable JetStream consumers: `@EventPattern<string>('evt.session.*.session.deleted', { durable:
 * 'sandbox-destroy' })` on a method makes one consumer of that name, shared by all replicas. The handler's promise or
 * Observable is awaited, then the event is acknowledged; a throw is judged by the error table. Use it through
 * {@link createReactorApp}.
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

  /** @throws AppError `internal.reactor` for a pattern without a durable name, or with two handlers. */
  listen(ready: (error?: unknown) => void): void {
    for (const [pattern, handler] of this.messageHandlers) {
      const durable: unknown = handler.extras?.['durable'];
      if (typeof durable !== 'string' || handler.next !== undefined) {
        ready(new AppError('defect', 'internal.reactor', `"${pattern}" needs one handler with a durable name.`));
        return;
      }
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

/** Nest would replace every error by "Internal server error"; the table must see the real one. */
@Catch()
export class KeepError implements RpcExceptionFilter {
  catch(thrown: unknown): Observable<never> {
    return throwError(() => thrown);
  }
}
