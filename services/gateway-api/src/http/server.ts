import { AppError, isAppError, jsonFault, LIMITS, newId, toAppError } from '@holdfast/contracts';
import { ERROR_TABLE } from '@holdfast/platform';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import type { Logger } from 'pino';

interface Envelope {
  readonly type: 'error';
  readonly request_id: string;
  readonly error: { readonly type: string; readonly message: string; readonly details?: { readonly error_code: string } };
}

/** Fastify's own refusals as ours. */
function fromFastify(error: unknown): AppError {
  if (isAppError(error)) return error;
  const code = typeof error === 'object' && error !== null && 'code' in error ? String(error.code) : '';
  if (code === 'FST_ERR_CTP_BODY_TOO_LARGE') {
    return new AppError('invalid', 'request.too-large', `The body is larger than ${LIMITS.bodyBytes} bytes.`, { details: { status: 413 } });
  }
  const status = typeof error === 'object' && error !== null && 'statusCode' in error ? Number(error.statusCode) : 500;
  if (status >= 400 && status < 500) return new AppError('invalid', 'request.malformed', 'The request is malformed.', { cause: error });
  return toAppError(error);
}

/** Request ids, JSON bodies with their bounds, and the wire contract's error envelope for everything that goes wrong. */
export function prepareServer(server: FastifyInstance, logger: Logger): void {
  server.addHook('onRequest', async (request, reply) => {
    reply.header('request-id', request.id);
    reply.header('x-content-type-options', 'nosniff');
  });
  // Any content type: SDKs and curl differ, and an empty body is legal for lifecycle verbs.
  server.removeAllContentTypeParsers();
  server.addContentTypeParser('*', { parseAs: 'string', bodyLimit: LIMITS.bodyBytes }, (_request, text, done) => {
    if (text === '') return done(null, undefined);
    try {
      const body: unknown = JSON.parse(text as string);
      const fault = jsonFault(body);
      if (fault !== undefined) throw new AppError('invalid', 'request.body', `The body ${fault}.`);
      done(null, body);
    } catch (error) {
      done(isAppError(error) ? error : new AppError('invalid', 'request.json', 'The body is not valid JSON.'));
    }
  });
  server.setNotFoundHandler((request, reply) => {
    sendError(request, reply, new AppError('not-found', 'request.no-route', `There is no ${request.method} ${request.url.split('?')[0]?.slice(0, 200)}.`), logger);
  });
  server.setErrorHandler((error, request, reply) => sendError(request, reply, error, logger));
}

/** Answers with the envelope; only what {@link AppError} says reaches the caller. */
export function sendError(request: FastifyRequest, reply: FastifyReply, thrown: unknown, logger: Logger): void {
  const error = fromFastify(thrown);
  const rule = ERROR_TABLE[error.kind];
  const tooLarge = error.details.status === 413;
  const errorCode = error.details.errorCode;
  const body: Envelope = {
    type: 'error',
    request_id: request.id,
    error: {
      type: tooLarge ? 'request_too_large' : rule.wireType,
      message: error.message,
      details: { error_code: typeof errorCode === 'string' ? errorCode : error.code },
    },
  };
  logger[rule.logLevel]({ err: error, requestId: request.id, route: request.routeOptions.url }, 'request refused');
  reply.code(tooLarge ? 413 : rule.httpStatus);
  reply.header('x-should-retry', String(rule.retryable));
  if (error.kind === 'exhausted' || error.kind === 'unavailable') reply.header('retry-after', '1');
  void reply.type('application/json').send(body);
}

export function requestId(): string {
  return newId('request');
}
