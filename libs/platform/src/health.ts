import { createServer, type Server } from 'node:http';

/** One thing that a service needs; returns what is missing, or undefined when it is there. */
export type ReadinessCheck = () => Promise<string | undefined> | string | undefined;

const CHECK_TIMEOUT_MS = 2_000;

export interface Readiness {
  readonly ready: boolean;
  /** By name, what the service waits for. */
  readonly waiting: Readonly<Record<string, string>>;
}

/** What a service waits for. Draining counts: a service that goes away is not ready. */
export class Health {
  readonly #checks = new Map<string, ReadinessCheck>();
  #draining = false;

  add(name: string, check: ReadinessCheck): void {
    this.#checks.set(name, check);
  }

  drain(): void {
    this.#draining = true;
  }

  async readiness(): Promise<Readiness> {
    const waiting: Record<string, string> = this.#draining ? { shutdown: 'the service is draining' } : {};
    await Promise.all(
      [...this.#checks].map(async ([name, check]) => {
        const late = new Promise<string>((resolve) =>
          setTimeout(resolve, CHECK_TIMEOUT_MS, `no answer within ${CHECK_TIMEOUT_MS} ms`).unref(),
        );
        const missing = await Promise.race([late, (async () => check())()]).catch(() => 'cannot be reached');
        if (missing !== undefined) waiting[name] = missing;
      }),
    );
    return { ready: Object.keys(waiting).length === 0, waiting };
  }
}

/** `/healthz` and `/readyz` for a service that speaks no HTTP itself; on loopback, port 0 = none. */
export async function startHealthServer(health: Health, port: number, host = '127.0.0.1'): Promise<Server | null> {
  if (port === 0) return null;
  const server = createServer((request, response) => {
    void (async () => {
      const readiness = request.url === '/readyz' ? await health.readiness() : null;
      const status = request.url === '/healthz' || readiness?.ready === true ? 200 : readiness === null ? 404 : 503;
      response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(readiness ?? { status }));
    })();
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(port, host, resolve);
  });
  return server;
}
