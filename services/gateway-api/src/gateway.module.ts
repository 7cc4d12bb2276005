import { type DynamicModule, Inject, Module, type OnApplicationShutdown } from '@nestjs/common';
import { GatewayService } from './host/gateway-service.ts';

/** Nest's view of the gateway: its life cycle. The routes are the operations' own list. */
@Module({})
export class GatewayModule implements OnApplicationShutdown {
  readonly #service: GatewayService;

  constructor(@Inject(GatewayService) service: GatewayService) {
    this.#service = service;
  }

  static with(service: GatewayService): DynamicModule {
    return { module: GatewayModule, providers: [{ provide: GatewayService, useValue: service }] };
  }

  onApplicationShutdown(): Promise<void> {
    return this.#service.stop();
  }
}
