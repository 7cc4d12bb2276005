import type { Bus } from '@holdfast/bus';
import { eventVersions, type ServiceBeat, serviceBeatSubject } from '@holdfast/contracts';
import type { Logger } from 'pino';
import { redact } from './logger.ts';

const DRAIN_LIMIT_MS = 25_000;

/** Says once a second that this instance lives, with its figures. Returns how to stop. */
export function startBeats(
  bus: Bus,
  service: string,
  instance: string,
  figures: () => ServiceBeat['figures'],
): () => void {
  const startedAt = new Date().toISOString();
  const beat = (): void => {
    const message: ServiceBeat = {
      service,
      instance,
      pid: process.pid,
      startedAt,
      memoryBytes: process.memoryUsage.rss(),
      reads: eventVersions.reads,
      figures: figures(),
    };
    bus.publishLive(serviceBeatSubject(service), message);
  };
  const timer = setInterval(beat, 1_000);
  beat();
  return () => clearInterval(timer);
}

/**
 * Runs a service's `stop` once on SIGTERM or SIGINT and exits with 0; a second signal, or a drain that takes longer than
 * 25 s, ends it at once. A rejection that nobody handles is logged and ends the process: the supervisor starts a clean one.
 */
export function onShutdown(logger: Logger, stop: () => Promise<void>): void {
  let stopping = false;
  const handle = (signal: NodeJS.Signals): void => {
    if (stopping) process.exit(1);
    stopping = true;
    logger.info({ signal }, 'draining');
    setTimeout(() => process.exit(1), DRAIN_LIMIT_MS).unref();
    stop().then(
      () => process.exit(0),
      (error: unknown) => {
        logger.error({ err: error }, 'shutdown failed');
        process.exit(1);
      },
    );
  };
  process.on('SIGTERM', handle);
  process.on('SIGINT', handle);
  for (const event of ['unhandledRejection', 'uncaughtException'] as const) {
    process.on(event, (error: unknown) => {
      logger.fatal({ err: error }, event);
      process.exit(1);
    });
  }
}

/** Ends the process with a clear line when a service cannot start. */
export async function runService(start: () => Promise<void>): Promise<void> {
  try {
    await start();
  } catch (error) {
    process.stderr.write(`${redact(error instanceof Error ? error.message : String(error))}\n`);
    process.exit(1);
  }
}
