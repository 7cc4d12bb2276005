export * from './config.ts';
export * from './error-table.ts';
export * from './health.ts';
export * from './jetstream-server.ts';
export * from './logger.ts';
export * from './service.ts';
