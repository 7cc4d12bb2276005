import { type DynamicModule, Inject, Module, type OnApplicationShutdown } from '@nestjs/common';
import { SandboxService } from './host/sandbox-service.ts';
import { EnvironmentReactor } from './reactor/environment.reactor.ts';
import { SessionReactor } from './reactor/session.reactor.ts';

@Module({})
export class SandboxModule implements OnApplicationShutdown {
  readonly #service: SandboxService;

  constructor(@Inject(SandboxService) service: SandboxService) {
    this.#service = service;
  }

  static with(service: SandboxService): DynamicModule {
    return {
      module: SandboxModule,
      controllers: [SessionReactor, EnvironmentReactor],
      providers: [{ provide: SandboxService, useValue: service }],
    };
  }

  onApplicationShutdown(): Promise<void> {
    return this.#service.stop();
  }
}
