import type { Socket } from 'node:net';
import { AppError, LIMITS, newId } from '@holdfast/contracts';
import {
  type ArgumentsHost,
  Catch,
  type DynamicModule,
  type ExceptionFilter,
  HttpException,
  StandardSchemaValidationPipe,
  type Type,
} from '@nestjs/common';
import { NestFactory } from '@nestjs/core';
import type { NestFastifyApplication } from '@nestjs/platform-fastify';
import type { Logger } from 'pino';
import { ERROR_TABLE } from './error-table.ts';
import type { Health } from './health.ts';
import { parseJsonBody } from './json-body.ts';
import { nestLogger } from './logger.ts';
import { toWireFailure, wireErrorBody } from './wire-error.ts';

const MAX_ISSUES = 5;
const MAX_MESSAGE_CHARS = 2_000;
/** A peer that sends its request slower than this is cut. */
const REQUEST_TIMEOUT_MS = 120_000;
const HEADERS_TIMEOUT_MS = 60_000;
/** How often Node looks for such peers. */
const SLOW_CHECK_MS = 30_000;
const MAX_PATH_PARAM_CHARS = 512;

/** What the filter needs of Fastify's request and reply. */
interface FailedRequest {
  readonly id: string;
  readonly method: string;
  readonly routeOptions?: { readonly url?: string | undefined };
}
interface FailedReply {
  readonly sent: boolean;
  readonly raw: { readonly headersSent: boolean; destroy(): void };
  status(code: number): this;
  removeHeader(name: string): this;
  headers(values: Record<string, string>): this;
  send(body: unknown): this;
}

/** Before a route is found there is no reply that could be typed, only Node's response. */
interface RawReply {
  writeHead(status: number, headers: Record<string, string>): unknown;
  end(text: string): unknown;
}

/**
 * Answers everything thrown with the wire contract's envelope, and logs it at its kind's level. A response that has
 * begun (a stream) is cut instead: a clean end would look like success to the SDKs.
 */
@Catch()
export class AppErrorFilter implements ExceptionFilter {
  readonly #logger: Logger;

  constructor(logger: Logger) {
    this.#logger = logger;
  }

  catch(thrown: unknown, host: ArgumentsHost): void {
    const http = host.switchToHttp();
    answerFailure(this.#logger, thrown, http.getRequest<FailedRequest>(), http.getResponse<FailedReply>());
  }
}

function answerFailure(logger: Logger, thrown: unknown, request: FailedRequest, reply: FailedReply): void {
  const failure = toWireFailure(thrown);
  const facts = {
    requestId: request.id,
    method: request.method,
    route: request.routeOptions?.url,
    status: failure.status,
  };
  if (failure.error.kind === 'defect') logger.error({ ...facts, err: thrown }, 'request failed');
  else logger[ERROR_TABLE[failure.error.kind].logLevel]({ ...facts, code: failure.error.code }, failure.error.message);
  if (reply.sent || reply.raw.headersSent) {
    reply.raw.destroy();
    return;
  }
  reply
    .status(failure.status)
    // Fastify closes after a body that it did not take; a client that still sends would get no answer but a reset.
    .removeHeader('connection')
    .headers({
      'content-type': 'application/json; charset=utf-8',
      'x-should-retry': String(failure.retryable),
      ...(failure.retryable && failure.status !== 500 ? { 'retry-after': retryAfter(failure.error) } : {}),
    })
    .send(wireErrorBody(failure, request.id));
}

/** Whole seconds, as HTTP has it. */
function retryAfter(error: AppError): string {
  const { retryAfterMs } = error.details;
  return typeof retryAfterMs === 'number' ? String(Math.max(1, Math.ceil(retryAfterMs / 1_000))) : '1';
}

/**
 * Validates `@Body({ schema })` and the like with the given zod schema and hands on what it parsed. The first faults are
 * named with their paths; values are not repeated.
 */
export function validationPipe(): StandardSchemaValidationPipe {
  return new StandardSchemaValidationPipe({
    exceptionFactory: (issues) => invalidRequest(issues),
  });
}

/** The error for a value that a schema refused; also for schemas that are used without the pipe. */
export function invalidRequest(
  issues: readonly { readonly message: string; readonly path?: readonly unknown[] | undefined }[],
): AppError {
  const named = issues.slice(0, MAX_ISSUES).map(({ message, path }) => {
    const where = (path ?? [])
      .map((part) => String(typeof part === 'object' && part !== null && 'key' in part ? part.key : part))
      .join('.');
    return where === '' ? message : `${where}: ${message}`;
  });
  if (issues.length > MAX_ISSUES) named.push(`and ${issues.length - MAX_ISSUES} more`);
  return new AppError('invalid', 'request.invalid', named.join('; ').slice(0, MAX_MESSAGE_CHARS));
}

interface RouteConfig {
  readonly atItsPace?: boolean;
}

export interface HttpOptions {
  readonly logger: Logger;
  readonly health: Health;
  /** Largest request body in bytes; default {@link LIMITS.bodyBytes}. */
  readonly bodyLimitBytes?: number;
  /** How long a request may take to arrive in whole, in milliseconds; default 2 minutes. */
  readonly requestTimeoutMs?: number;
  /** The same for routes whose config says `atItsPace`, because they read their body as it arrives; default as for others. */
  readonly paceTimeoutMs?: number;
}

/**
 * A Nest application on Fastify that speaks the wire contract: request ids (`request-id`), the error envelope for all
 * failures including unknown routes and malformed HTTP, bounded JSON bodies, `/healthz` and `/readyz`. The caller adds
 * its hooks and listens. While it closes it goes on answering what arrives on open connections.
 */
export async function createHttpApp(
  module: Type | DynamicModule,
  options: HttpOptions,
): Promise<NestFastifyApplication> {
  const { health, logger } = options;
  // Only here, because services without HTTP would carry Fastify in memory for nothing.
  const { FastifyAdapter } = await import('@nestjs/platform-fastify');
  const requestTimeoutMs = options.requestTimeoutMs ?? REQUEST_TIMEOUT_MS;
  const adapter = new FastifyAdapter({
    bodyLimit: options.bodyLimitBytes ?? LIMITS.bodyBytes,
    requestTimeout: Math.max(requestTimeoutMs, options.paceTimeoutMs ?? 0),
    // Node would refuse a request without Host by itself, without the envelope.
    http: {
      requireHostHeader: false,
      headersTimeout: Math.min(HEADERS_TIMEOUT_MS, requestTimeoutMs),
      connectionsCheckingInterval: Math.min(SLOW_CHECK_MS, requestTimeoutMs),
    },
    genReqId: () => newId('request'),
    return503OnClosing: false,
    routerOptions: { maxParamLength: MAX_PATH_PARAM_CHARS },
    clientErrorHandler: (error, socket) => answerMalformed(error, socket),
    frameworkErrors: (error: unknown, request: { readonly id: string }, reply: { readonly raw: RawReply }) => {
      const failure = toWireFailure(error);
      reply.raw.writeHead(failure.status, {
        'content-type': 'application/json',
        'request-id': request.id,
        'x-should-retry': 'false',
      });
      reply.raw.end(JSON.stringify(wireErrorBody(failure, request.id)));
    },
  });
  const app = await NestFactory.create<NestFastifyApplication>(module, adapter, {
    logger: nestLogger(logger),
    abortOnError: false,
    bodyParser: false,
  });
  const fastify = adapter.getInstance();
  // Node would answer an unknown expectation by itself, without the envelope; nothing here depends on one.
  fastify.server.on('checkExpectation', (request, response) => fastify.server.emit('request', request, response));
  fastify.addHook('onRequest', (request, reply, done) => {
    reply.headers({ 'request-id': request.id, 'x-content-type-options': 'nosniff' });
    const hasHost = request.headers.host !== undefined || request.raw.httpVersion === '1.0';
    done(hasHost ? undefined : new AppError('invalid', 'request.no-host', 'The request has no Host header.'));
  });
  // Node has one bound for all routes: the longest.
  fastify.addHook('preParsing', (request, _reply, payload, done) => {
    const { headers, socket } = request.raw;
    const hasBody = headers['transfer-encoding'] !== undefined || Number(headers['content-length'] ?? 0) > 0;
    if (hasBody && (request.routeOptions.config as RouteConfig).atItsPace !== true) {
      const late = setTimeout(() => {
        if (!request.raw.complete) answerMalformed(LATE, socket);
      }, requestTimeoutMs);
      request.raw.once('end', () => clearTimeout(late)).once('close', () => clearTimeout(late));
    }
    done(null, payload);
  });
  fastify.removeAllContentTypeParsers();
  // Whatever the content type says: SDKs and curl differ, and nothing but JSON is spoken here.
  fastify.addContentTypeParser('*', { parseAs: 'buffer' }, async (_request: unknown, body: Buffer) =>
    parseJsonBody(body),
  );
  fastify.get('/healthz', () => ({ status: 200 }));
  fastify.get('/readyz', async (_request, reply) => {
    const readiness = await health.readiness();
    return reply.status(readiness.ready ? 200 : 503).send(readiness);
  });
  app.useGlobalFilters(new AppErrorFilter(logger));
  app.useGlobalPipes(validationPipe());
  return app;
}

const LATE = Object.assign(new Error('the body did not arrive in time'), { code: 'ERR_HTTP_REQUEST_TIMEOUT' });

/** Bytes that are no HTTP request: there is no reply object yet, so the answer is written by hand. */
function answerMalformed(error: Error & { code?: string }, socket: Socket): void {
  if (error.code === 'ECONNRESET' || !socket.writable) {
    socket.destroy();
    return;
  }
  const statuses: Readonly<Record<string, number>> = { HPE_HEADER_OVERFLOW: 431, ERR_HTTP_REQUEST_TIMEOUT: 408 };
  const failure = toWireFailure(new HttpException('The request is not valid HTTP.', statuses[error.code ?? ''] ?? 400));
  const requestId = newId('request');
  const body = JSON.stringify(wireErrorBody(failure, requestId));
  socket.end(
    `HTTP/1.1 ${failure.status} Error\r\ncontent-type: application/json\r\nrequest-id: ${requestId}\r\n` +
      `content-length: ${Buffer.byteLength(body)}\r\nconnection: close\r\n\r\n${body}`,
  );
}
