import { createHttpApp } from '@holdfast/platform';
import type { FastifyInstance } from 'fastify';
import type { Logger } from 'pino';
import type { GatewayConfig } from '../config.ts';
import { GatewayModule } from '../gateway.module.ts';
import { GatewayService } from './gateway-service.ts';

/** How long an upload may take that goes on arriving. */
const UPLOAD_TIMEOUT_MS = 3_600_000;

export interface RunningGateway {
  readonly port: number;
  stop(): Promise<void>;
}

/** Starts the gateway and listens. */
export async function startGateway(config: GatewayConfig, logger: Logger): Promise<RunningGateway> {
  const service = new GatewayService(config, logger);
  const app = await createHttpApp(GatewayModule.with(service), {
    logger,
    health: service.health,
    paceTimeoutMs: UPLOAD_TIMEOUT_MS,
  });
  const server = app.getHttpAdapter().getInstance() as unknown as FastifyInstance;
  await service.start(server);
  await app.listen(config.API_PORT, config.HOST);
  const address = server.server.address();
  logger.info({ address }, 'ready');
  return {
    port: typeof address === 'object' && address !== null ? address.port : config.API_PORT,
    stop: async () => {
      service.drain();
      await app.close();
    },
  };
}
