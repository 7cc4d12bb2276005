import { startDemoGateway } from './server.ts';

const port = Number(process.env.DEMO_GATEWAY_PORT ?? 8090);
const host = process.env.HOST ?? '127.0.0.1';
const server = await startDemoGateway(port, host);
console.log(`demo gateway on http://${host}:${port}`);
for (const signal of ['SIGTERM', 'SIGINT'] as const) {
  process.on(signal, () => {
    server.close(() => process.exit(0));
    server.closeAllConnections();
  });
}
