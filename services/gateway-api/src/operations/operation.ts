import { AppError, type CredentialKind, ID_PREFIXES } from '@holdfast/contracts';
import type { z } from 'zod';
import type { Principal } from '../auth/authenticator.ts';
import type { Exchange } from '../http/exchange.ts';

/** One route: what it takes, and what answers it. The server, the checks and the OpenAPI document derive from it. */
export interface Operation<S extends z.ZodType = z.ZodType> {
  readonly method: 'GET' | 'POST' | 'DELETE';
  /** With `:name` parameters. */
  readonly path: string;
  readonly id: string;
  readonly summary: string;
  /** False = answers callers without a credential. */
  readonly authenticated?: boolean;
  /** Credentials that may call it; default {@link WORKSPACE_CALLERS}. A worker's opens only what it is bound to. */
  readonly callers?: readonly CredentialKind[];
  readonly body?: S;
  /** What a 200 holds; of a stream, what a frame's `data` holds; of lines, what each is. */
  readonly answer: z.ZodType;
  /** True when the body carries content and may be as large as `LIMITS.contentBodyBytes`. */
  readonly takesContent?: boolean;
  /** Query parameters, for the document; each operation reads its own. */
  readonly query?: readonly string[];
  /** Set when the body is a form with one `file`, which `handle` reads as it arrives: the form's other fields. */
  readonly upload?: z.ZodType;
  /** True when the answer is bytes, which may be many. */
  readonly downloads?: boolean;
  /** True when `handle` writes the answer by itself. */
  readonly streams?: boolean;
  /** True when `handle` gives an `AsyncIterable<string>` of lines of JSON, which are sent as the caller takes them. */
  readonly lines?: boolean;
  readonly handle: (exchange: Exchange<z.infer<S>>) => Promise<unknown>;
}

/** Callers that have their workspace. */
export const WORKSPACE_CALLERS: readonly CredentialKind[] = ['api_key', 'dashboard'];

const KIND_NAMES: Readonly<Record<CredentialKind, string>> = {
  api_key: 'an API key',
  dashboard: 'a dashboard session',
  link: 'a sign-in link',
  environment_key: 'an environment key',
  work_token: 'the token of a work item',
};

/**
 * Refuses a credential that an operation is not for: by its kind, and a worker's by what it is bound to. What is not its
 * own does not exist for it. @throws AppError `auth.wrong-credential`, `auth.work-ended`
 */
export function requireCaller(
  callers: readonly CredentialKind[] = WORKSPACE_CALLERS,
  path: string,
  { kind, bound }: Principal,
  params: Readonly<Record<string, string | undefined>>,
): void {
  if (!callers.includes(kind)) {
    const wanted = callers.map((caller) => KIND_NAMES[caller]).join(' or ');
    throw new AppError('forbidden', 'auth.wrong-credential', `This needs ${wanted}; this is ${KIND_NAMES[kind]}.`);
  }
  if (bound === null) return;
  const ofSession = path.startsWith('/v1/sessions/');
  if (ofSession && bound.sessionId === null) {
    throw new AppError(
      'forbidden',
      'auth.work-ended',
      'The work item of this token is not its worker’s (any more): acknowledge it, or poll for another.',
    );
  }
  const id = params['id']?.replace(/^session_/, `${ID_PREFIXES.session}_`);
  const own = ofSession
    ? id === bound.sessionId
    : id === bound.environmentId && (bound.workId === null || params['work'] === bound.workId);
  if (!own) throw new AppError('not-found', 'auth.not-bound', 'There is no such object for this credential.');
}

/** Keeps the body's type while the operations are kept in one list. */
export function operation<S extends z.ZodType>(declaration: Operation<S>): Operation {
  return declaration as unknown as Operation;
}
