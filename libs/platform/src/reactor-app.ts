import type { Bus } from '@holdfast/bus';
import type { DynamicModule, INestMicroservice, Type } from '@nestjs/common';
import { NestFactory } from '@nestjs/core';
import type { Logger } from 'pino';
import { nestLogger } from './logger.ts';

/**
 * A Nest application without HTTP whose `@EventPattern` methods consume durable events. Events are taken from `listen()`
 * on; `close()` waits for what is being handled. The bus stays the caller's.
 */
export async function createReactorApp(
  module: Type | DynamicModule,
  options: { readonly bus: Bus; readonly logger: Logger },
): Promise<INestMicroservice> {
  const { bus, logger } = options;
  // Only here, because services without reactors would carry Nest's transports in memory for nothing.
  const { JetStreamServer, KeepError } = await import('./jetstream-server.ts');
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
