import { AppError, type ErrorKind, isAppError, toAppError } from '@holdfast/contracts';
import { HttpException } from '@nestjs/common';
import { ERROR_TABLE } from './error-table.ts';

/** The wire contract's error body. */
export interface WireErrorBody {
  readonly type: 'error';
  readonly request_id: string;
  readonly error: {
    readonly type: string;
    readonly message: string;
    readonly details: Readonly<Record<string, unknown>>;
  };
}

/** A failure as HTTP shows it; `error` is for the log. */
export interface WireFailure {
  readonly status: number;
  readonly type: string;
  readonly retryable: boolean;
  readonly error: AppError;
}

/** Kinds whose details are the caller's business; the rest would name our insides. */
const TELLING: ReadonlySet<ErrorKind> = new Set([
  'invalid',
  'not-found',
  'forbidden',
  'rejected',
  'precondition',
  'conflict',
  'exhausted',
]);

/** Statuses that HTTP has and no error kind has; an SDK chooses its error class by them. */
const HTTP_FAULTS: Readonly<Record<number, { code: string; type: string; message: string }>> = {
  404: {
    code: 'request.unknown-route',
    type: 'not_found_error',
    message: 'There is no such route; see /openapi.json for those there are.',
  },
  408: { code: 'request.timeout', type: 'timeout_error', message: 'The request took too long to arrive.' },
  413: {
    code: 'request.too-large',
    type: 'request_too_large',
    message: 'The request body is larger than this server takes.',
  },
  431: {
    code: 'request.headers-too-large',
    type: 'request_too_large',
    message: 'The request headers are larger than this server takes.',
  },
};

/** What the caller gets for anything thrown. A fault of the request that the HTTP server found keeps its status. */
export function toWireFailure(thrown: unknown): WireFailure {
  if (!isAppError(thrown)) {
    const status = httpStatusOf(thrown);
    if (status >= 400 && status < 500) {
      const fault = HTTP_FAULTS[status] ?? {
        code: 'request.invalid',
        type: 'invalid_request_error',
        message: thrown instanceof Error ? thrown.message : 'The request is not valid.',
      };
      const error = new AppError('invalid', fault.code, fault.message, { cause: thrown });
      return { status, type: fault.type, retryable: status === 408, error };
    }
  }
  const error = toAppError(thrown);
  const rule = ERROR_TABLE[error.kind];
  return { status: rule.httpStatus, type: rule.wireType, retryable: rule.retryable, error };
}

/**
 * The body of a failed request; `details.error_code` is the error's code, unless its details name one of the wire
 * contract's own as `errorCode`. A defect says nothing of its cause: that is in the
 * log under the request id.
 */
export function wireErrorBody(failure: WireFailure, requestId: string): WireErrorBody {
  const { code, details, kind, message } = failure.error;
  const { errorCode, ...rest } = details;
  return {
    type: 'error',
    request_id: requestId,
    error: {
      type: failure.type,
      message: kind === 'defect' ? 'Something went wrong on our side; the request id finds it in the log.' : message,
      details: { ...(TELLING.has(kind) ? rest : {}), error_code: typeof errorCode === 'string' ? errorCode : code },
    },
  };
}

function httpStatusOf(thrown: unknown): number {
  if (thrown instanceof HttpException) return thrown.getStatus();
  if (typeof thrown !== 'object' || thrown === null || !('statusCode' in thrown)) return 500;
  return typeof thrown.statusCode === 'number' ? thrown.statusCode : 500;
}
