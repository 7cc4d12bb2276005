import { type ComponentProps, memo, useRef } from 'react';
import ReactMarkdown, { type Components } from 'react-markdown';
import rehypeSanitize from 'rehype-sanitize';
import remarkGfm from 'remark-gfm';
import { CopyButton, Verbatim } from './ui.tsx';

/** Links leave without a trace of this page; images of other hosts stay links, because loading one would tell its host. */
const components: Components = {
  a: ({ href, children }) => (
    <a href={href} target="_blank" rel="noopener noreferrer nofollow">
      {children}
    </a>
  ),
  img: ({ src, alt }) =>
    typeof src === 'string' && src.startsWith('data:image/') ? (
      <img src={src} alt={alt ?? ''} className="max-h-96 max-w-full rounded-lg" />
    ) : (
      <a href={typeof src === 'string' ? src : undefined} target="_blank" rel="noopener noreferrer nofollow">
        {alt === undefined || alt === '' ? 'image' : alt}
      </a>
    ),
  // The only input that survives the sanitiser: a task's box.
  input: ({ checked }) => (
    <input type="checkbox" checked={checked === true} disabled aria-label={checked === true ? 'done' : 'to do'} />
  ),
  pre: ({ children }) => <CodeBlock>{children}</CodeBlock>,
  table: ({ children }) => (
    <div className="table-box">
      <table>{children}</table>
    </div>
  ),
};

function CodeBlock({ children }: Pick<ComponentProps<'pre'>, 'children'>) {
  const block = useRef<HTMLPreElement>(null);
  return (
    <div className="group/code relative">
      <Verbatim ref={block}>{children}</Verbatim>
      <CopyButton
        text={() => block.current?.textContent ?? ''}
        label="Copy the code"
        className="absolute top-1.5 right-1.5 bg-raised opacity-0 group-hover/code:opacity-100 focus-visible:opacity-100 pointer-coarse:opacity-100"
      />
    </div>
  );
}

/** Text that nobody vouches for, as Markdown; HTML in it is shown as text. */
export const Markdown = memo(function Markdown({ text }: { text: string }) {
  return (
    <div className="prose-chat">
      <ReactMarkdown remarkPlugins={[remarkGfm]} rehypePlugins={[rehypeSanitize]} components={components}>
        {text}
      </ReactMarkdown>
    </div>
  );
});
