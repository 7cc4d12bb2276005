import 'reflect-metadata';
import { createLogger, loadConfig, onShutdown, runService } from '@holdfast/platform';
import { gatewayConfig } from './config.ts';
import { startGateway } from './host/start.ts';

await runService(async () => {
  const config = loadConfig(gatewayConfig, process.env);
  const logger = createLogger({ service: 'gateway-api', instance: config.HOLDFAST_INSTANCE, level: config.LOG_LEVEL });
  const gateway = await startGateway(config, logger);
  onShutdown(logger, () => gateway.stop());
});
