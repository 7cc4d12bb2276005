import { readFileSync, writeFileSync } from 'node:fs';
// The source, because this also runs where nothing has been built yet.
import {
  catalogueEvents,
  type EventDeclaration,
  eventSubject,
  sandboxEvents,
  sessionEvents,
  streamOf,
} from '../../libs/contracts/src/index.ts';

/** `node bin/src/generate-docs.ts [--check]`: writes docs/events.md from the declarations; `--check` only compares. */
const FILE = 'docs/events.md';
/** Objects within objects are spelled out so deep; below they are named by kind. */
const MAX_DEPTH = 2;

interface Shape {
  readonly type?: string | readonly string[];
  readonly const?: unknown;
  readonly enum?: readonly unknown[];
  readonly anyOf?: readonly Shape[];
  readonly oneOf?: readonly Shape[];
  readonly allOf?: readonly Shape[];
  readonly items?: Shape;
  readonly properties?: Readonly<Record<string, Shape>>;
  readonly required?: readonly string[];
  readonly additionalProperties?: Shape | boolean;
  readonly $ref?: string;
}

/** What the page needs of a declaration; `wire` is only asked for its presence. */
type Declared = Pick<EventDeclaration, 'type' | 'schemaVersion' | 'aggregate' | 'summary' | 'data'> & {
  readonly wire?: unknown;
};

/** The text of `docs/events.md`: every durable event, by aggregate. */
export function eventsPage(): string {
  const declarations: readonly Declared[] = [...sessionEvents, ...sandboxEvents, ...catalogueEvents];
  const aggregates = [...new Set(declarations.map((declaration) => declaration.aggregate))];
  return [
    '# Events',
    '',
    'Generated from the declarations in `libs/contracts` by `npm run generate`; a test fails when it is stale.',
    '',
    'Every durable event of the log. Each lies in the stream of its object, has a gap-free version there and is published once',
    'to JetStream under its subject, with its id as `Nats-Msg-Id`. "Stream" says whether the public event stream of a session',
    'shows it (one frame) or it stays inside. Token deltas are live only and not listed: a durable event always closes them.',
    '',
    ...aggregates.flatMap((aggregate) => {
      const events = declarations.filter((declaration) => declaration.aggregate === aggregate);
      return [
        `## ${aggregate}`,
        '',
        `Log stream \`${streamOf(aggregate, '<id>')}\`, subjects \`${eventSubject(streamOf(aggregate, '<id>'), '<type>')}\`.`,
        '',
        '| type | version | stream | what happened | data |',
        '|---|---|---|---|---|',
        ...events.map(row),
        '',
      ];
    }),
  ].join('\n');
}

function row(event: Declared): string {
  const shape = event.data.toJSONSchema({ unrepresentable: 'any', io: 'output' }) as Shape;
  const cells = [
    `\`${event.type}\``,
    String(event.schemaVersion),
    event.wire === undefined ? 'inside' : 'shown',
    event.summary,
    dataOf(shape),
  ];
  return `| ${cells.map((cell) => cell.replaceAll('|', '\\|')).join(' | ')} |`;
}

function dataOf(shape: Shape): string {
  const fields = Object.entries(shape.properties ?? {});
  return fields.length === 0
    ? '–'
    : fields.map(([name, field]) => `\`${fieldOf(shape, name)}\`: ${describe(field, 1)}`).join('<br>');
}

function fieldOf(shape: Shape, name: string): string {
  return shape.required?.includes(name) === true ? name : `${name}?`;
}

/** One line of prose for a JSON schema. */
function describe(shape: Shape, depth: number): string {
  const choices = shape.anyOf ?? shape.oneOf;
  if (choices !== undefined) return [...new Set(choices.map((choice) => describe(choice, depth)))].join(' | ');
  if (shape.allOf !== undefined) return [...new Set(shape.allOf.map((part) => describe(part, depth)))].join(' & ');
  if (shape.const !== undefined) return JSON.stringify(shape.const);
  if (shape.enum !== undefined) return shape.enum.map((value) => JSON.stringify(value)).join(' | ');
  if (shape.type === 'array') {
    const item = shape.items ?? {};
    const several = item.anyOf !== undefined || item.oneOf !== undefined;
    const items = describe(item, several ? MAX_DEPTH : depth);
    return `list of ${several ? `(${items})` : items}`;
  }
  if (shape.type === 'object') {
    const fields = Object.entries(shape.properties ?? {});
    if (fields.length === 0)
      return typeof shape.additionalProperties === 'object'
        ? `map of ${describe(shape.additionalProperties, depth)}`
        : 'object';
    if (depth >= MAX_DEPTH)
      return typeof shape.properties?.['type']?.const === 'string'
        ? `\`${shape.properties['type'].const}\` object`
        : 'object';
    return `{ ${fields.map(([name, field]) => `${fieldOf(shape, name)}: ${describe(field, depth + 1)}`).join(', ')} }`;
  }
  if (Array.isArray(shape.type)) return shape.type.join(' | ');
  return typeof shape.type === 'string' ? shape.type : shape.$ref === undefined ? 'object' : 'any JSON';
}

if (import.meta.main) {
  const page = eventsPage();
  if (!process.argv.includes('--check')) {
    writeFileSync(FILE, page);
    console.log(`${FILE} written`);
  } else {
    const current = ((): string => {
      try {
        return readFileSync(FILE, 'utf8');
      } catch {
        return '';
      }
    })();
    if (current !== page) {
      console.error(`${FILE} is stale; run: npm run generate`);
      process.exit(1);
    }
    console.log(`${FILE} is up to date`);
  }
}
