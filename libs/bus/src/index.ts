export * from './bus.ts';
export * from './commit-hints.ts';
export * from './consumer.ts';
export * from './relay.ts';
export * from './server-config.ts';
export * from './streams.ts';
