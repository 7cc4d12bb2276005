/**
 * Who must act on a failure. One exhaustive table in `platform` maps each kind to an HTTP status,
 * a wire error type, a bus acknowledgement and a log level.
 */
export const ERROR_KINDS = [
  'invalid',
  'unauthenticated',
  'not-found',
  'forbidden',
  'rejected',
  'precondition',
  'conflict',
  'exhausted',
  'unavailable',
  'defect',
] as const;
export type ErrorKind = (typeof ERROR_KINDS)[number];

/** The shape of an {@link AppError} between processes. */
export interface ErrorBody {
  readonly code: string;
  readonly kind: ErrorKind;
  readonly message: string;
  readonly details?: Readonly<Record<string, unknown>>;
}

/**
 * The one error class. `code` is dotted and stable (`session.archived`); compare codes, never `instanceof`,
 * across processes. The message names the thing, the rule and what to do, and holds no secret.
 */
export class AppError extends Error {
  override readonly name = 'AppError';
  readonly code: string;
  readonly kind: ErrorKind;
  readonly details: Readonly<Record<string, unknown>>;

  constructor(
    kind: ErrorKind,
    code: string,
    message: string,
    options: { details?: Readonly<Record<string, unknown>>; cause?: unknown } = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.kind = kind;
    this.code = code;
    this.details = options.details ?? {};
  }

  /** What crosses a process boundary: everything but the cause and the stack. */
  toBody(): ErrorBody {
    return { code: this.code, kind: this.kind, message: this.message, details: this.details };
  }

  static fromBody(body: ErrorBody): AppError {
    return new AppError(body.kind, body.code, body.message, { details: body.details ?? {} });
  }
}

/** Recognises an {@link AppError} by shape, because two copies of this module may be loaded. */
export function isAppError(error: unknown): error is AppError {
  return error instanceof Error && error.name === 'AppError' && 'code' in error && 'kind' in error;
}

/** Turns anything thrown into an {@link AppError}; what is unknown is a defect and keeps its cause. */
export function toAppError(error: unknown): AppError {
  if (isAppError(error)) return error;
  return new AppError('defect', 'internal.defect', 'Something went wrong on our side.', { cause: error });
}

/** Refuses a value that cannot occur; the compiler proves it, the error says so when it happens anyway. */
export function unreachable(value: never): never {
  throw new AppError('defect', 'internal.unreachable', `Unexpected value: ${JSON.stringify(value)}`);
}
