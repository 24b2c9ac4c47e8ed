// What Great Expectations' pages need of a script: folding, and hiding what succeeded.
function mtfHide(hidden) {
  document.querySelectorAll(".hide-succeeded-validation-target-child").forEach((e) => {
    e.parentElement.style.display = hidden ? "none" : "";
  });
  document.querySelectorAll(".hide-succeeded-validation-target").forEach((e) => {
    e.style.display = hidden ? "none" : "";
  });
  document.querySelectorAll(".hide-succeeded-validations-column-section-target-child").forEach((e) => {
    const section = e.parentElement.parentElement;
    section.style.display = hidden ? "none" : "";
    document.querySelectorAll('a[href$="' + section.id + '"]').forEach((a) => { a.style.display = hidden ? "none" : ""; });
  });
}
function showAllValidations() { mtfHide(false); }
function hideSucceededValidations() { mtfHide(true); }
document.addEventListener("click", (event) => {
  const button = event.target.closest('[data-toggle="collapse"]');
  if (!button) return;
  event.preventDefault();
  const target = document.querySelector(button.dataset.target || button.getAttribute("href"));
  if (target) target.classList.toggle("show");
});
