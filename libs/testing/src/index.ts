export * from './postgres.ts';
export * from './shared-server.ts';
export * from './nats.ts';
