import { type Bus, consumeEvents, type Registration } from '@holdfast/bus';
import { AppError, type StoredEvent } from '@holdfast/contracts';
import { Catch, type DynamicModule, type INestMicroservice, type RpcExceptionFilter, type Type } from '@nestjs/common';
import { NestFactory } from '@nestjs/core';
import { type CustomTransportStrategy, Server } from '@nestjs/microservices';
import type { Logger } from 'pino';
import { isObservable, lastValueFrom, type Observable, throwError } from 'rxjs';
import { ERROR_TABLE } from './error-table.ts';
import { nestLogger } from './logger.ts';

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
        return ready(new AppError('defect', 'internal.reactor', `"${pattern}" needs one handler with a durable name.`));
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
class KeepError implements RpcExceptionFilter {
  catch(thrown: unknown): Observable<never> {
    return throwError(() => thrown);
  }
}

/**
 * A Nest application without HTTP whose `@EventPattern` methods consume durable events. Events are taken from `listen()`
 * on; `close()` waits for what is being handled. The bus stays the caller's.
 */
export async function createReactorApp(
  module: Type | DynamicModule,
  options: { readonly bus: Bus; readonly logger: Logger },
): Promise<INestMicroservice> {
  const { bus, logger } = options;
  const app = await NestFactory.createMicroservice(module, {
    strategy: new JetStreamServer(bus, (error, subject) =>
      logger.warn({ err: error, subject }, 'an event was not handled'),
    ),
    logger: nestLogger(logger),
    abortOnError: false,
  });
  app.useGlobalFilters(new KeepError());
  return app;
}
