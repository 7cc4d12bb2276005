import { isAppError } from '@holdfast/contracts';
import type { LoggerService } from '@nestjs/common';
import { type Logger, pino } from 'pino';

const SECRET_PATHS = [
  'authorization',
  'apiKey',
  'api_key',
  'password',
  'token',
  'secret',
  'key',
  'cookie',
  'credential',
];
const CREDENTIAL = /\b(hf[sl]?_[A-Za-z0-9_-]{4})[A-Za-z0-9_-]{39}\b|\b(sk-[A-Za-z0-9_-]{4})[A-Za-z0-9_-]{8,}\b/g;
const CONNECTION = /\b([a-z]+:\/\/[^:/\s@]*):[^@\s/]+@/g;

export type { Logger };

/** Takes credentials out of a text: our own keys, common model keys, and passwords within URLs. */
export function redact(text: string): string {
  return text
    .replace(CREDENTIAL, (_all, own: string | undefined, other: string | undefined) => `${own ?? other ?? ''}…`)
    .replace(CONNECTION, '$1:…@');
}

/** JSON lines on stdout. Secret-looking members are removed, and credentials within texts are shortened. */
export function createLogger(options: { service: string; instance: string; level: string }): Logger {
  return pino({
    level: options.level,
    base: { service: options.service, instance: options.instance },
    timestamp: pino.stdTimeFunctions.isoTime,
    redact: { paths: SECRET_PATHS.flatMap((path) => [path, `*.${path}`, `*.*.${path}`]), remove: true },
    serializers: { err: describeError },
    hooks: { streamWrite: redact },
  });
}

function describeError(error: unknown): unknown {
  if (!(error instanceof Error))
    return typeof error === 'object' && error !== null && 'message' in error
      ? { message: String(error.message) }
      : String(error);
  return {
    type: error.name,
    message: error.message,
    ...(isAppError(error) ? { code: error.code, kind: error.kind, details: error.details } : {}),
    stack: error.stack,
    ...(error.cause === undefined ? {} : { cause: describeError(error.cause) }),
  };
}

/** Nest's own messages through the same logger; its start-up chatter is debug. */
export function nestLogger(logger: Logger): LoggerService {
  const write =
    (level: 'debug' | 'warn' | 'error') =>
    (message: unknown, ...rest: unknown[]) =>
      logger[level](
        { context: rest[rest.length - 1] },
        typeof message === 'string' ? message : JSON.stringify(message),
      );
  return {
    log: write('debug'),
    debug: write('debug'),
    verbose: write('debug'),
    warn: write('warn'),
    error: write('error'),
    fatal: write('error'),
  };
}
