import type { Verdict } from '@holdfast/bus';
import type { ErrorKind } from '@holdfast/contracts';

export interface ErrorRule {
  readonly httpStatus: number;
  /** `error.type` of the wire contract's envelope. */
  readonly wireType: string;
  /** Whether the SDKs may repeat the request by themselves (`x-should-retry`). */
  readonly retryable: boolean;
  /** What a durable consumer does with the event. */
  readonly verdict: Verdict;
  readonly logLevel: 'debug' | 'info' | 'warn' | 'error';
}

/** What each kind of failure means to the outside: the one table. */
export const ERROR_TABLE: Readonly<Record<ErrorKind, ErrorRule>> = {
  invalid: { httpStatus: 400, wireType: 'invalid_request_error', retryable: false, verdict: 'term', logLevel: 'debug' },
  unauthenticated: {
    httpStatus: 401,
    wireType: 'authentication_error',
    retryable: false,
    verdict: 'term',
    logLevel: 'info',
  },
  forbidden: { httpStatus: 403, wireType: 'permission_error', retryable: false, verdict: 'term', logLevel: 'info' },
  'not-found': { httpStatus: 404, wireType: 'not_found_error', retryable: false, verdict: 'term', logLevel: 'debug' },
  rejected: {
    httpStatus: 409,
    wireType: 'conflict_error',
    retryable: false,
    verdict: 'term',
    logLevel: 'debug',
  },
  precondition: {
    httpStatus: 412,
    wireType: 'invalid_request_error',
    retryable: false,
    verdict: 'term',
    logLevel: 'debug',
  },
  // Somebody else was faster: trying again can help.
  conflict: { httpStatus: 409, wireType: 'conflict_error', retryable: true, verdict: 'nak', logLevel: 'info' },
  exhausted: { httpStatus: 429, wireType: 'rate_limit_error', retryable: true, verdict: 'nak', logLevel: 'info' },
  unavailable: { httpStatus: 503, wireType: 'overloaded_error', retryable: true, verdict: 'nak', logLevel: 'warn' },
  defect: { httpStatus: 500, wireType: 'api_error', retryable: true, verdict: 'nak', logLevel: 'error' },
};
