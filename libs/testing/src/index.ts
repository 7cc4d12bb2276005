export * from './postgres.ts';
export * from './shared-server.ts';
export * from './nats.ts';
export * from './given-when-then.ts';
export * from './platform.ts';
