import { LIMITS } from '@holdfast/contracts';
import { nestLogger } from '@holdfast/platform';
import { NestFactory } from '@nestjs/core';
import { FastifyAdapter, type NestFastifyApplication } from '@nestjs/platform-fastify';
import type { FastifyInstance } from 'fastify';
import type { Logger } from 'pino';
import type { GatewayConfig } from '../config.ts';
import { GatewayModule } from '../gateway.module.ts';
import { prepareServer, requestId } from '../http/server.ts';
import { GatewayService } from './gateway-service.ts';

export interface RunningGateway {
  readonly port: number;
  stop(): Promise<void>;
}

/** Starts the gateway and listens. */
export async function startGateway(config: GatewayConfig, logger: Logger): Promise<RunningGateway> {
  const service = new GatewayService(config, logger);
  const adapter = new FastifyAdapter({ bodyLimit: LIMITS.bodyBytes, genReqId: requestId, forceCloseConnections: true, routerOptions: { maxParamLength: 256 } });
  const app = await NestFactory.create<NestFastifyApplication>(GatewayModule.with(service), adapter, { logger: nestLogger(logger), bodyParser: false, abortOnError: false });
  const server = app.getHttpAdapter().getInstance() as unknown as FastifyInstance;
  prepareServer(server, logger);
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
