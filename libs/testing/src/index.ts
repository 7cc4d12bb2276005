export { launchChromium } from './chromium.ts';
export * from './client.ts';
export * from './given-when-then.ts';
export * from './litellm.ts';
export * from './nats.ts';
export * from './platform.ts';
export * from './postgres.ts';
export * from './python.ts';
export * from './shared-server.ts';
