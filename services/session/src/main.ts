import 'reflect-metadata';
import { createLogger, loadConfig, nestLogger, onShutdown, runService } from '@holdfast/platform';
import { NestFactory } from '@nestjs/core';
import { sessionConfig } from './config.ts';
import { SessionModule } from './session.module.ts';

await runService(async () => {
  const config = loadConfig(sessionConfig, process.env);
  const logger = createLogger({ service: 'session', instance: config.HOLDFAST_INSTANCE, level: config.LOG_LEVEL });
  const app = await NestFactory.createApplicationContext(SessionModule.with(config, logger), {
    logger: nestLogger(logger),
    abortOnError: false,
  });
  onShutdown(logger, () => app.close());
});
