import { createEnvironmentBody, type SandboxEnvironment } from '@holdfast/contracts';

/** The sandbox settings of an environment as a form holds them. What is empty is the platform's own. */
export type SandboxTexts = Readonly<Record<keyof SandboxEnvironment, string>>;
type Toleration = SandboxEnvironment['tolerations'][number];

const lines = (text: string): string[] =>
  text
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line !== '');
/** At the first mark; what follows it is absent where there is none. */
function cut(text: string, mark: string): [string, string | undefined] {
  const at = text.indexOf(mark);
  return at < 0 ? [text.trim(), undefined] : [text.slice(0, at).trim(), text.slice(at + 1).trim()];
}

/** As taints are written: `key=value:Effect`, `key:Effect` for any value, `*` for every taint; the effect may be left out. */
function parseToleration(line: string): { [K in keyof Toleration]?: string | undefined } {
  const [taint, effect] = cut(line, ':');
  const [key, value] = cut(taint, '=');
  return {
    ...(key === '*' ? {} : { key }),
    ...(value === undefined ? { operator: 'Exists' } : { operator: 'Equal', value }),
    ...(effect === undefined ? {} : { effect }),
  };
}
function writeToleration({ key, operator, value, effect }: Toleration): string {
  const taint = operator === 'Exists' ? (key ?? '*') : `${key}=${value ?? ''}`;
  return effect === undefined ? taint : `${taint}:${effect}`;
}

export function textsOf(sandbox: SandboxEnvironment): SandboxTexts {
  const text = (value: string | number | null): string => (value === null ? '' : String(value));
  return {
    image: text(sandbox.image),
    cpu_millis: text(sandbox.cpu_millis),
    memory_mib: text(sandbox.memory_mib),
    runtime_class: text(sandbox.runtime_class),
    node_selector: Object.entries(sandbox.node_selector)
      .map((label) => label.join('='))
      .join('\n'),
    tolerations: sandbox.tolerations.map(writeToleration).join('\n'),
    workspace: sandbox.workspace,
    workspace_mib: text(sandbox.workspace_mib),
    storage_class: text(sandbox.storage_class),
    pool_size: text(sandbox.pool_size),
    idle_seconds: text(sandbox.idle_seconds),
    max_lifetime_seconds: text(sandbox.max_lifetime_seconds),
  };
}

/** What the texts ask for; {@link environmentFaults} says whether the API takes it. */
export function sandboxFrom(texts: SandboxTexts): Readonly<Record<keyof SandboxEnvironment, unknown>> {
  const name = (text: string): string | null => text.trim() || null;
  const amount = (text: string): number | null => (text.trim() === '' ? null : Number(text));
  return {
    image: name(texts.image),
    cpu_millis: amount(texts.cpu_millis),
    memory_mib: amount(texts.memory_mib),
    runtime_class: name(texts.runtime_class),
    node_selector: Object.fromEntries(
      lines(texts.node_selector).map((line) => {
        const [key, value = ''] = cut(line, '=');
        return [key, value];
      }),
    ),
    tolerations: lines(texts.tolerations).map(parseToleration),
    workspace: texts.workspace,
    workspace_mib: amount(texts.workspace_mib),
    storage_class: name(texts.storage_class),
    pool_size: amount(texts.pool_size) ?? 0,
    idle_seconds: amount(texts.idle_seconds),
    max_lifetime_seconds: amount(texts.max_lifetime_seconds),
  };
}

/** What the API would refuse of an environment, by member; members of `x_sandbox` by their own name. */
export function environmentFaults(body: object): Readonly<Record<string, string>> {
  const parsed = createEnvironmentBody.safeParse(body);
  return Object.fromEntries(
    (parsed.error?.issues ?? []).map((issue) => {
      const [top = 'form', part, member, place] = issue.path.map(String);
      const where = member !== undefined && /^\d+$/.test(place ?? '') ? `line ${Number(place) + 1} ` : '';
      return [part === 'x_sandbox' ? (member ?? part) : (part ?? top), `${where}${wordsOf(issue)}`];
    }),
  );
}

type Issue = NonNullable<ReturnType<typeof createEnvironmentBody.safeParse>['error']>['issues'][number];
function wordsOf(issue: Issue): string {
  switch (issue.code) {
    case 'too_big':
      return issue.origin === 'string' ? issue.message : `must be at most ${issue.maximum}`;
    case 'too_small':
      return issue.origin === 'string' ? issue.message : `must be at least ${issue.minimum}`;
    case 'invalid_type':
      return 'must be a whole number';
    case 'invalid_key':
      return issue.issues[0]?.message ?? issue.message;
    case 'invalid_value':
      return `must be one of ${issue.values.join(', ')}`;
    default:
      return issue.message;
  }
}
