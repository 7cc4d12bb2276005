import 'reflect-metadata';
import { createLogger, createReactorApp, loadConfig, onShutdown, runService } from '@holdfast/platform';
import { containerEnv, sandboxConfig } from './config.ts';
import { SandboxService } from './host/sandbox-service.ts';
import { SandboxModule } from './sandbox.module.ts';

await runService(async () => {
  const config = loadConfig(sandboxConfig, process.env);
  const logger = createLogger({ service: 'sandbox', instance: config.HOLDFAST_INSTANCE, level: config.LOG_LEVEL });
  const { env, refused } = containerEnv(process.env);
  if (refused.length > 0) logger.warn({ refused }, 'these CONTAINER_ENV_ names are reserved and were left out');
  const service = new SandboxService(config, env, logger);
  await service.start();
  const app = await createReactorApp(SandboxModule.with(service), { bus: service.bus, logger });
  await app.listen();
  onShutdown(logger, () => app.close());
});
