import {
  type DynamicModule,
  Inject,
  Module,
  type OnApplicationBootstrap,
  type OnApplicationShutdown,
} from '@nestjs/common';
import type { Logger } from 'pino';
import type { SessionConfig } from './config.ts';
import { SessionService } from './host/session-service.ts';

/** Nest's view of the session service: its life cycle. */
@Module({})
export class SessionModule implements OnApplicationBootstrap, OnApplicationShutdown {
  readonly #service: SessionService;

  constructor(@Inject(SessionService) service: SessionService) {
    this.#service = service;
  }

  static with(config: SessionConfig, logger: Logger): DynamicModule {
    return {
      module: SessionModule,
      providers: [{ provide: SessionService, useValue: new SessionService(config, logger) }],
    };
  }

  onApplicationBootstrap(): Promise<void> {
    return this.#service.start();
  }
  onApplicationShutdown(): Promise<void> {
    return this.#service.stop();
  }
}
